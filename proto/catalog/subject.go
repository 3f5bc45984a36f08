package catalog

import "fmt"

// checkSubjects refuses an event about a subject that no command has. The events that are loaded to decide a command
// are those without a subject and those about the command's subject. An event about any other subject would be part
// of a state that is still in memory, but missing from the same state when it is loaded again.
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
				"never loaded to decide; leave the subject out, or name it in a command", name, e.kind, e.subject.source))
		}
	}
	return problems
}
