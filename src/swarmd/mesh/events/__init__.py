"""What members tell everybody: user events, and questions that all of them answer."""
