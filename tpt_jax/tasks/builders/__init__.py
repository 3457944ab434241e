"""Builders for tensorflow-datasets, one file each: what is published becomes array_record files that can be indexed."""
