"""Images in, predicted graphs out, through rollout servers."""
