"""Looking at what a job trains on, without training."""
