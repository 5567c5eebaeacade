"""The bundled trainer: data, loop, average, sampling."""
