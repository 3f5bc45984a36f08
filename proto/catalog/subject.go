package catalog

import "fmt"

// checkSubjects returns an error for each event with a subject that no command of its kind of stream has. To decide a
// command, a service loads the events without a subject and the events with the command's subject. An event with any
// other subject would be part of a state that is kept in memory, but missing in a state that is loaded from the log.
func (c *Catalog) checkSubjects() (problems []error) {
	named := map[[2]string]bool{}
	for _, command := range c.commands {
		if command.subject.source != "" {
			named[[2]string{command.stream.kind(), command.subject.source}] = true
		}
	}
	for _, name := range c.EventNames() {
		e := c.events[name]
		if e.subject.source != "" && !named[[2]string{e.kind, e.subject.source}] {
			problems = append(problems, fmt.Errorf("%s: no command on streams of kind %s has the subject %s, so the event is "+
				"never loaded for a decision; remove the subject, or declare it for a command", name, e.kind, e.subject.source))
		}
	}
	return problems
}
