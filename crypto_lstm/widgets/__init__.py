"""What a person sees: progress, the live panel of a training, charts of candles. Their JavaScript is in assets/."""
