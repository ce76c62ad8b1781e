"""What a config makes: methods as recipes, sources, and the parts that an iteration is made of."""
