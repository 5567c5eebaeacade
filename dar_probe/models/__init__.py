"""The bundled backbone."""
