"""`sgg-rl rehearse`: a recipe's whole chain at its own shapes, with few layers and steps."""
