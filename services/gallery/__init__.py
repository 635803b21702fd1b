"""Pictures of what happens to tokens: for people, who would rather look than read."""
