"""Run records -> what people look at."""
