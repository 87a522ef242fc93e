"""Training: arguments of the scripts, Trainers, and what a run does from its start to the Hub."""
