"""A sweep as one page of HTML that a person wants to look at, offline."""
