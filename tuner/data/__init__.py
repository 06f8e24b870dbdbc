"""The data room: records from files, each with its file and line, checked and split before anything else happens."""
