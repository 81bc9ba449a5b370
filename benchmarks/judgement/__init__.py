"""How fast decisions are judged and simulated, and what memory that takes."""
