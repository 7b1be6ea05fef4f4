package redis

// hosts are the servers that were looked at.
type hosts struct{ server *Server }

func (h *hosts) close() {}
