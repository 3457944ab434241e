"""Builders for tensorflow-datasets, one file each: they convert published files to indexable array_record files."""
