"""How clients' work is executed, and wrappers that count it and choose who takes part."""
