"""The storages that ship with creche, and the only switch on a database's name: `open_storage(url)`."""
