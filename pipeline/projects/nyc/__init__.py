"""The bundled project: New York's bikes, taxis and weather."""
