// Fault injection for the tests of durability, loaded with LD_PRELOAD (tests/faults.py compiles it).
// After fi_arm(root, n, mode, log) every call that changes something below `root` is counted, and the n-th one is hit:
//   0 only count   1 SIGKILL before it   2 no space left, from there on   3 I/O error, once   4 half of a write, then SIGKILL
//   5 no space left, once   6 power loss before it: files written but not fsynced since are emptied, then SIGKILL
// fi_disarm() returns the count. Calls are noted, one a line, on the descriptor `log`.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdarg.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/syscall.h>
static volatile int armed=0; static long cnt=0, target=-1; static int mode=0; // 0 count,1 kill,2 ENOSPC,3 EIO, 4 torn-kill
static char root[4096]; static int logfd=-1;
static char fdt[65536];
static char dirty[512][1024]; static int ndirty=0;
static int find(const char*p){ for(int i=0;i<ndirty;i++) if(!strcmp(dirty[i],p)) return i; return -1; }
static int fullname(int fd,char*b){char l[64];snprintf(l,64,"/proc/self/fd/%d",fd);ssize_t k=readlink(l,b,1000);b[k<0?0:k]=0;return k>0;}
static void soil(int fd){ char b[1024]; if(fullname(fd,b)&&find(b)<0&&ndirty<512) strcpy(dirty[ndirty++],b); }
static void flushed(int fd){ char b[1024]; int i; if(fullname(fd,b)&&(i=find(b))>=0) strcpy(dirty[i],dirty[--ndirty]); }
static void moved(const char*a,const char*b){ size_t n=strlen(a); char c[2048]; for(int i=0;i<ndirty;i++) if(!strncmp(dirty[i],a,n)&&(dirty[i][n]==0||dirty[i][n]=='/')){ snprintf(c,2048,"%s%s",b,dirty[i]+n); strncpy(dirty[i],c,1023); } }
static void lose(void){ for(int i=0;i<ndirty;i++) syscall(SYS_truncate,dirty[i],0); }
#define REAL(n) static __typeof__(n)*real_##n=0; if(!real_##n) real_##n=dlsym(RTLD_NEXT,#n)
void fi_arm(const char*r,long t,int m,int lfd){strncpy(root,r,4095);target=t;mode=m;cnt=0;ndirty=0;logfd=lfd;armed=1;memset(fdt,0,sizeof fdt);}
long fi_disarm(void){armed=0;return cnt;}
static int under(const char*p){ if(!armed||!p) return 0; return strncmp(p,root,strlen(root))==0; }
static int underat(int d,const char*p){ if(!armed||!p) return 0; if(p[0]=='/') return under(p); if(d==AT_FDCWD){char b[8192]; if(!getcwd(b,4096)) return 0; strcat(b,"/"); strncat(b,p,4000); return under(b);} return d>=0&&d<65536&&fdt[d]; }
static int fdhit(int fd){ return armed&&fd>=0&&fd<65536&&fdt[fd]; }
static int step(const char*op,const char*p,long n){ // returns 0 ok, else errno to inject; kills
  cnt++; if(logfd>=0){char b[600]; int l=snprintf(b,600,"%ld %s %s %ld\n",cnt,op,p?p:"-",n); syscall(SYS_write,logfd,b,l);}
  if(cnt==target || (target>0 && (mode==2) && cnt>=target && (op[0]=='w'||op[0]=='p'||op[0]=='o'||op[0]=='m'))){ if(mode==6) lose(); if(mode==1||mode==6){kill(getpid(),SIGKILL);} if(mode==2||mode==5) return ENOSPC; if(mode==3&&cnt==target) return EIO; if(mode==4) return -1; }
  return 0; }
static void fdname(int fd,char*b){char l[64];snprintf(l,64,"/proc/self/fd/%d",fd);ssize_t k=readlink(l,b,300);b[k<0?0:k]=0;char*s=b+ (strncmp(b,root,strlen(root))==0?strlen(root):0); if(s!=b) memmove(b,s,strlen(s)+1);}
static int doopen(const char*op,int d,const char*p,int fl,mode_t m,int is64){
  int hit=underat(d,p);
  if(hit&&(fl&(O_WRONLY|O_RDWR|O_CREAT|O_TRUNC))){ int e=step(op,p,fl); if(e>0){errno=e;return -1;} }
  int fd=syscall(SYS_openat,d,p,fl|(is64?0:0),m);
  if(fd<0){errno=errno;return -1;}
  if(fd<65536) fdt[fd]=hit?1:0; return fd; }
#define MODEARG mode_t m=0; if(fl&(O_CREAT|O_TMPFILE)){va_list a;va_start(a,fl);m=va_arg(a,mode_t);va_end(a);}
int open(const char*p,int fl,...){MODEARG return doopen("open",AT_FDCWD,p,fl,m,0);}
int open64(const char*p,int fl,...){MODEARG return doopen("open",AT_FDCWD,p,fl,m,1);}
int openat(int d,const char*p,int fl,...){MODEARG return doopen("openat",d,p,fl,m,0);}
int openat64(int d,const char*p,int fl,...){MODEARG return doopen("openat",d,p,fl,m,1);}
FILE*fopen(const char*p,const char*md){REAL(fopen); if(under(p)&&(md[0]!='r'||strchr(md,'+'))){int e=step("open.f",p,0); if(e>0){errno=e;return 0;}} FILE*f=real_fopen(p,md); if(f&&fileno(f)<65536) fdt[fileno(f)]=under(p)?1:0; return f;}
FILE*fopen64(const char*p,const char*md){REAL(fopen64); if(under(p)&&(md[0]!='r'||strchr(md,'+'))){int e=step("open.f",p,0); if(e>0){errno=e;return 0;}} FILE*f=real_fopen64(p,md); if(f&&fileno(f)<65536) fdt[fileno(f)]=under(p)?1:0; return f;}
ssize_t write(int fd,const void*b,size_t n){ if(fdhit(fd)){char nm[400];fdname(fd,nm);int e=step("write",nm,n); if(e>0){errno=e;return -1;} if(e<0){syscall(SYS_write,fd,b,n/2);kill(getpid(),SIGKILL);} } if(fdhit(fd)) soil(fd); return syscall(SYS_write,fd,b,n); }
ssize_t pwrite(int fd,const void*b,size_t n,off_t o);
ssize_t pwrite64(int fd,const void*b,size_t n,off_t o){ if(fdhit(fd)){char nm[400];fdname(fd,nm);int e=step("pwrite",nm,n); if(e>0){errno=e;return -1;} if(e<0){syscall(SYS_pwrite64,fd,b,n/2,o);kill(getpid(),SIGKILL);} } if(fdhit(fd)) soil(fd); return syscall(SYS_pwrite64,fd,b,n,o); }
ssize_t pwrite(int fd,const void*b,size_t n,off_t o){ return pwrite64(fd,b,n,o); }
ssize_t writev(int fd,const struct iovec*v,int c){ size_t n=0; for(int i=0;i<c;i++) n+=v[i].iov_len; if(fdhit(fd)){char nm[400];fdname(fd,nm);int e=step("writev",nm,n); if(e>0){errno=e;return -1;} if(e<0){syscall(SYS_write,fd,v[0].iov_base,v[0].iov_len/2);kill(getpid(),SIGKILL);} } if(fdhit(fd)) soil(fd); return syscall(SYS_writev,fd,v,c); }
int rename(const char*a,const char*b){ if(under(a)||under(b)){int e=step("mrename",b,0); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} long r=syscall(SYS_rename,a,b); if(armed&&!r) moved(a,b); return r; }
int renameat2(int d,const char*a,int d2,const char*b,unsigned f){ if(underat(d,a)||underat(d2,b)){int e=step("mrenameat2",b,0); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} long r=syscall(SYS_renameat2,d,a,d2,b,f); if(armed&&!r&&a[0]=='/'&&b[0]=='/') moved(a,b); return r; }
int renameat(int d,const char*a,int d2,const char*b){ if(underat(d,a)||underat(d2,b)){int e=step("mrenameat",b,0); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} long r=syscall(SYS_renameat,d,a,d2,b); if(armed&&!r&&a[0]=='/'&&b[0]=='/') moved(a,b); return r; }
int link(const char*a,const char*b){ if(under(b)){int e=step("mlink",b,0); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_linkat,AT_FDCWD,a,AT_FDCWD,b,0); }
int linkat(int d,const char*a,int d2,const char*b,int f){ if(underat(d2,b)){int e=step("mlinkat",b,0); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_linkat,d,a,d2,b,f); }
int mkdir(const char*p,mode_t m){ if(under(p)){int e=step("mkdir",p,0); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_mkdir,p,m); }
int unlink(const char*p){ if(under(p)){int e=step("unlink",p,0); if(e>0&&mode==3){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_unlink,p); }
int unlinkat(int d,const char*p,int f){ if(underat(d,p)){int e=step("unlinkat",p,0); if(e>0&&mode==3){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_unlinkat,d,p,f); }
int rmdir(const char*p){ if(under(p)){int e=step("rmdir",p,0); if(e>0&&mode==3){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_rmdir,p); }
int ftruncate64(int fd,off_t n){ if(fdhit(fd)){int e=step("mftruncate","-",n); if(e>0){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} return syscall(SYS_ftruncate,fd,n); }
int ftruncate(int fd,off_t n){ return ftruncate64(fd,n); }
int fsync(int fd){ if(fdhit(fd)){char nm[400];fdname(fd,nm);int e=step("fsync",nm,0); if(e>0&&mode==3){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} if(fdhit(fd)) flushed(fd); return syscall(SYS_fsync,fd); }
int fdatasync(int fd){ if(fdhit(fd)){char nm[400];fdname(fd,nm);int e=step("fdatasync",nm,0); if(e>0&&mode==3){errno=e;return -1;} if(e<0) kill(getpid(),SIGKILL);} if(fdhit(fd)) flushed(fd); return syscall(SYS_fdatasync,fd); }
int close(int fd){ if(fd>=0&&fd<65536) fdt[fd]=0; return syscall(SYS_close,fd); }
