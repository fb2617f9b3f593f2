//! What containers get of the agent.

