"""Studies that can be rerun: each prints its tables and writes its figures and pictures to a folder."""
