"""Looking at jobs that train on examples: recordings, series."""
