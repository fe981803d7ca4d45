"""The sync service: packs to the phones they belong to, and the bundle to all of them."""
