"""`samlit generate`: masks of everything in many images, by nobody, as shards in SA-1B's layout (SAM_SPEC 3.2)."""
