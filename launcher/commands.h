// The commands. Each takes its own name as argv[0] and returns the process's exit code.
#ifndef TSR_LAUNCHER_COMMANDS_H
#define TSR_LAUNCHER_COMMANDS_H

int tsr_cmd_train(int argc, char **argv);
int tsr_cmd_coordinator(int argc, char **argv);
int tsr_cmd_status(int argc, char **argv);
int tsr_cmd_generate(int argc, char **argv);
int tsr_cmd_eval(int argc, char **argv);
int tsr_cmd_tokenizer(int argc, char **argv);
int tsr_cmd_data(int argc, char **argv);
int tsr_cmd_ckpt(int argc, char **argv);
int tsr_cmd_plan(int argc, char **argv);
int tsr_cmd_doctor(int argc, char **argv);
int tsr_cmd_layout_check(int argc, char **argv);
int tsr_cmd_bench(int argc, char **argv);

#endif
