"""What a job will need on a cluster, found out without the cluster."""
