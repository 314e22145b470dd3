"""What `dclr VERB` does: one file for each verb, with its configuration and its function."""
