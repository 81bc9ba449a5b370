"""Tables, checks, errors and facts about the system that every wing may use."""
