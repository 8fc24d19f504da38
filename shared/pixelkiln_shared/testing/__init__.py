"""In-memory twins of the ledger, the storage and the bells, so that tests need no mocks.

Each is held to the contract suite of the real one.
"""
