package hub

// roomSet holds the memberships of a connection in one shard. They are in a slice until the set gets more than maxFew
// memberships, or a call of expect announces that it will. From then on they are in a map.
type roomSet struct {
	few  []*membership
	many map[*room]*membership
}

const maxFew = 8

func (s *roomSet) get(r *room) *membership {
	if s.many != nil {
		return s.many[r]
	}
	for _, m := range s.few {
		if m.room == r {
			return m
		}
	}
	return nil
}

func (s *roomSet) add(m *membership) {
	switch {
	case s.many != nil:
		s.many[m.room] = m
	case len(s.few) < maxFew:
		s.few = append(s.few, m)
	default:
		s.expect(1)
		s.many[m.room] = m
	}
}

// expect prepares the set for the given number of further memberships.
func (s *roomSet) expect(more int) {
	if s.many != nil || len(s.few)+more <= maxFew {
		return
	}
	s.many = make(map[*room]*membership, len(s.few)+more)
	for _, m := range s.few {
		s.many[m.room] = m
	}
	s.few = nil
}

func (s *roomSet) remove(m *membership) {
	if s.many != nil {
		delete(s.many, m.room)
		return
	}
	for i, other := range s.few {
		if other == m {
			last := len(s.few) - 1
			s.few[i], s.few[last] = s.few[last], nil
			s.few = s.few[:last]
			return
		}
	}
}

// some returns n of the memberships, or all if there are fewer.
func (s *roomSet) some(n int) []*membership {
	list := make([]*membership, 0, min(n, len(s.few)+len(s.many)))
	for _, m := range s.many {
		if len(list) == n {
			return list
		}
		list = append(list, m)
	}
	return append(list, s.few[:min(n-len(list), len(s.few))]...)
}
