"""`adadelta report`: one HTML page from the files that the other commands wrote."""
