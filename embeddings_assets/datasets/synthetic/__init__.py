"""Small drawn datasets in the official raw layouts, for the demo and the tests."""
