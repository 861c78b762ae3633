"""Accuracy of reward models against comparisons and size, from the supervised model and from nothing."""
