"""Programs that print one line of JSON each, their peer measured in the same run."""
