"""Files on disk: headers, folders, adapters, and the staged output folder."""
