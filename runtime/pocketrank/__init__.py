"""pocketrank on the device: rank with the user's whole history, offline."""
