"""From a run to the Hub, or to one merged model."""
