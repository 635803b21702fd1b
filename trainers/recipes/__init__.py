"""Named runs. Each opens with the command, the figure that it should reach, and the source."""
