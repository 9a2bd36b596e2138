"""The endpoints, one file each: they read a request and write an answer."""
