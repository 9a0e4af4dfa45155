"""Groups of a run as pages show them: drawn, judged, and explained."""
