"""The command `report`: one HTML page about the models of a catalog."""
