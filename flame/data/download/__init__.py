"""Downloads: public corpora from a registry, fetched to be continued after any interruption, as parquet to train on."""
