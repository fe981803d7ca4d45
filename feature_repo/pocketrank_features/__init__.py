"""Feast side: events in, segment rows through Feast, packs out."""
