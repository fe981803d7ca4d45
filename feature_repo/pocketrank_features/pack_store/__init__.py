"""What is behind `PackOnlineStore`: rings of rows and ready-made packs, in a SQLite file or on a Redis server.

`incoming` and `values` take rows as Feast hands them over; `rings` says which row of a slot stays; `composing` makes
packs; `ring_store` does both in one step, in `blobs`.
"""
