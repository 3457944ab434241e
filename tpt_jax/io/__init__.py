"""Files: JSON lines, records, atomic writes, paths on disks and in buckets."""
