"""Champions in service: batching and validation are pure; Ray Serve is in `deployment` and `client`."""
