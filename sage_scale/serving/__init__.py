"""A translator as an HTTP endpoint with one page: `sage-scale serve`."""
