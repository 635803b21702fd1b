"""The order of rows and the random draws of a run, as pure arithmetic: numpy only."""
