"""Lays a model out over the devices of a job."""
