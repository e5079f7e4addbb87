"""Random networks over the whole operator table, the laws that pruning has to keep on them, and the search for one that
breaks a law."""
